"""A server that only streams, for a relay in front of it: `python -m bench.scale.upstream PORT STEP_MS` sends a chunk
of a chat every STEP_MS. It is bare asyncio, so that it takes little of the CPU that is measured."""

import asyncio
import json
import sys

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def chunk(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}
    body = {
        "id": "chatcmpl-mock",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "mock",
        "choices": [choice],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step_s: float) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
    if not length:
        writer.close()  # not a chat, but a probe
        return
    asked = json.loads(await reader.readexactly(length))
    writer.write(HEAD)
    began = asyncio.get_running_loop().time()
    for number in range(1, asked["max_tokens"] + 1):
        await asyncio.sleep(began + number * step_s - asyncio.get_running_loop().time())
        writer.write(chunk(f" t{number}", "length" if number == asked["max_tokens"] else None))
    writer.write(b"data: [DONE]\n\n")
    await writer.drain()
    writer.close()


async def serve(port: int, step_s: float) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: answer(reader, writer, step_s), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]) / 1000))
