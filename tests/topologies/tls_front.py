"""Ends TLS in front of a server that speaks none: `tls_front.py PORT BEHIND CA CERTIFICATE`."""

import asyncio
import ssl
import sys

HOST = "127.0.0.1"


async def main(port: int, behind: int, authority: str, certificate: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection(HOST, behind)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(hand_on(reader, outer))
                both.create_task(hand_on(inner, writer))
        except* OSError:
            pass  # one side went away: so does the other

    server = await asyncio.start_server(serve, HOST, port, ssl=context)
    await server.serve_forever()


async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
