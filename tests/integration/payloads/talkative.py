"""Sends more than a quiet payload ever would, some of it wrong.

Arguments: how many messages, the bytes of each, the bytes of the big one, how many lines.
"""

import json
import os
import sys

import dagster_pipes

messages, size, big, lines = map(int, sys.argv[1:])


def raw(method: str, params: "dict[str, object]") -> bytes:
    """Give a message that dagster_pipes would refuse to write."""
    return json.dumps({"__dagster_pipes_version": "0.1", "method": method, "params": params}).encode() + b"\n"


with dagster_pipes.open_dagster_pipes() as pipes:
    path = dagster_pipes.decode_param(os.environ[dagster_pipes.DAGSTER_PIPES_MESSAGES_ENV_VAR])["path"]
    for number in range(messages):
        pipes.report_custom_message((f"{number} " * size)[:size])
        for line in range(number * lines // messages, (number + 1) * lines // messages):
            print(line)
    pipes.report_custom_message("big" * (big // 3))
    with open(path, "ab") as stream:
        stream.write(raw("log", {"message": "an unknown level", "level": "NOTICE"}))
        stream.write(raw("log", {"message": "no text for a level", "level": 7}))
        stream.write(raw("report_weather", {"rain": True}))
        stream.write(b"no JSON at all\n")
        # Six bytes a turn, so that pieces of two's powers end inside of characters, and before and behind wrong bytes.
        line = raw("report_custom_message", {"payload": "?"})
        stream.write(line.replace(b"?", b"\xc3\xa9\xe2\x82\xac\xff" * 500_000))
    pipes.report_custom_message("the end")
