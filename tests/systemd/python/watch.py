#!/usr/bin/env python3
"""A watcher that connects again when its stream ends with UNAVAILABLE: `watch.py PROFILE`.

It prints `connected` each time that a stream brings its first token, and a generation when it is a new one.
"""

import sys
import time

import grpc

from bloom.agent.v1 import token_pb2, token_pb2_grpc

OPTIONS = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.min_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 100)]
last = None
with grpc.insecure_channel("unix:///run/bloom-agent/agent.sock", OPTIONS) as channel:
    stub = token_pb2_grpc.TokenServiceStub(channel)
    while True:
        fresh = True
        try:
            for answer in stub.WatchToken(token_pb2.WatchTokenRequest(name=sys.argv[1])):
                if fresh:
                    print("connected", flush=True)
                    fresh = False
                if answer.token.generation != last:
                    last = answer.token.generation
                    print(last, flush=True)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                sys.exit(error.code().name)
        time.sleep(0.02)
