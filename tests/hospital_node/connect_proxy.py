"""A small HTTP proxy, run as a process of its own: CONNECT and nothing else. Prints its port, then each request line.

Arguments: `open` tunnels, `closed` answers 403 to everything, `password` wants credentials user:secret.
"""

from __future__ import annotations

import asyncio
import base64
import sys

WANTED = b"Basic " + base64.b64encode(b"user:secret")


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    request = head.split(b"\r\n", 1)[0].decode()
    print(request, flush=True)
    method, target, _ = request.split(" ")
    if method != "CONNECT" or sys.argv[1] == "closed":
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()
        return
    if sys.argv[1] == "password" and WANTED not in head:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        writer.close()
        return
    host, _, port = target.rpartition(":")
    there_reader, there_writer = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
