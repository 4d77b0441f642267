#!/usr/bin/env python3
"""Prints a profile's token, or the reason why there is none: `get_token.py PROFILE`."""

import re
import sys

import grpc

from bloom.agent.v1 import token_pb2, token_pb2_grpc

with grpc.insecure_channel("unix:///run/bloom-agent/agent.sock") as channel:
    stub = token_pb2_grpc.TokenServiceStub(channel)
    try:
        print(stub.GetToken(token_pb2.GetTokenRequest(name=sys.argv[1]), timeout=20).token.access_token)
    except grpc.RpcError as error:
        # Of google.rpc.ErrorInfo: the reason, and the domain after it.
        details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
        reason = re.search(rb"([A-Z_]+)\x12\x0bbloom\.agent", details)
        sys.exit(f"{error.code().name} {reason[1].decode() if reason else ''}")
