"""A proxy that delays: what it takes comes out whole and in order, each piece after a while of its own.

    python -m tests.chaos.jitter --port PORT --to HOST:PORT --most-ms 200 --seed 7

Where the kernel cannot delay packets (netem), this stands between a gateway and a server.
"""

import argparse
import asyncio
import random

RARE, RARELY_S = 0.01, 0.6  # of the pieces, this share waits so long


async def serve(port: int, host: str, to: int, most_ms: float, seed: int) -> None:
    """Listen until the process is ended."""
    chance = random.Random(seed)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(64 * 1024):
                late_s = chance.uniform(0, most_ms / 1000)
                await asyncio.sleep(RARELY_S if chance.random() < RARE else late_s)
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, to)
        except OSError:
            writer.close()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, far_writer))
            tasks.create_task(pump(far_reader, writer))

    async with await asyncio.start_server(join, "127.0.0.1", port, backlog=1024) as server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--to")
    parser.add_argument("--most-ms", type=float, default=200.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    host, _, port = given.to.rpartition(":")
    asyncio.run(serve(given.port, host, int(port), given.most_ms, given.seed))


if __name__ == "__main__":
    main()
