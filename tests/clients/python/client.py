"""Python's grpcio against a running agent: nothing but `unix:///path`, no channel option."""

import os
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from bloom.agent.v1 import token_pb2, token_pb2_grpc

# Many times the life of the tokens that the harness asks for: reached only when something hangs.
DEADLINE = 30


def error_info(error):
    """The google.rpc.ErrorInfo of a failed call, decoded from grpc-status-details-bin."""
    for detail in rpc_status.from_call(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    raise AssertionError(f"no ErrorInfo in {error}")


def failure_of(call, *arguments):
    try:
        call(*arguments, timeout=DEADLINE)
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call was to fail")


def get_token(tokens):
    for request in (token_pb2.GetTokenRequest(name="bloom"), token_pb2.GetTokenRequest()):
        token = tokens.GetToken(request, timeout=DEADLINE).token
        assert token.name == "bloom" and token.access_token and token.token_type == "Bearer"
        assert token.expires_at.ToNanoseconds() > token.obtained_at.ToNanoseconds()


def watch_token_over_a_rotation(tokens):
    stream = tokens.WatchToken(token_pb2.WatchTokenRequest(name="bloom"), timeout=DEADLINE)
    first, second = next(stream).token, next(stream).token
    stream.cancel()
    assert first.generation != second.generation
    assert first.access_token != second.access_token
    assert tokens.GetToken(token_pb2.GetTokenRequest(name="bloom"), timeout=DEADLINE).token.generation >= second.generation


def an_errors_details(tokens):
    error = failure_of(tokens.GetToken, token_pb2.GetTokenRequest(name="no-such-profile"))
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
    info = error_info(error)
    assert (info.domain, info.reason) == ("bloom.agent", "UNKNOWN_PROFILE"), info


def health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "bloom"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, (service, answer)
    error = failure_of(stub.Check, health_pb2.HealthCheckRequest(service="no-such-profile"))
    assert error.code() == grpc.StatusCode.NOT_FOUND, error


def reflection_v1alpha(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {"bloom.agent.v1.TokenService", "bloom.agent.v1.AdminService", "grpc.health.v1.Health"} <= services, services
    described = database.FindFileContainingSymbol("bloom.agent.v1.TokenService")
    assert described.package == "bloom.agent.v1"


def main():
    with grpc.insecure_channel("unix://" + os.environ["BLOOM_AGENT_SOCK"]) as channel:
        tokens = token_pb2_grpc.TokenServiceStub(channel)
        cases = {
            "GetToken": lambda: get_token(tokens),
            "WatchToken over a rotation": lambda: watch_token_over_a_rotation(tokens),
            "an error's details": lambda: an_errors_details(tokens),
            "health": lambda: health(channel),
            "reflection v1alpha": lambda: reflection_v1alpha(channel),
        }
        for name, case in cases.items():
            case()
            print(f"  ok  {name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
