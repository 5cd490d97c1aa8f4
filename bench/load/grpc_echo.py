"""Unary calls of gRPC that return what they are sent.

grpc_echo.py server              says its port
grpc_echo.py client PORT SIZE SECONDS CALLS
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent import futures

import grpc  # type: ignore[import-untyped]

METHOD = "/echo.Echo/Call"


def serve() -> None:
    class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            if details.method != METHOD:
                return None
            return grpc.unary_unary_rpc_method_handler(lambda request, _: request)

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def ask(port: int, size: int, seconds: float, calls: int) -> None:
    """So many threads call at a time, over one connection."""
    message, counts = b"x" * size, [0] * calls
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        for _ in range(20):
            call(message)
        start = time.monotonic()

        def one(number: int) -> None:
            while time.monotonic() - start < seconds:
                if call(message) != message:
                    sys.exit("the answer differs")
                counts[number] += 1

        threads = [threading.Thread(target=one, args=(number,)) for number in range(calls)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - start
    print(json.dumps({"calls": sum(counts), "rate": sum(counts) / took}))


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve()
    else:
        ask(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
