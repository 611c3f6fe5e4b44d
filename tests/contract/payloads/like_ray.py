#!/usr/bin/env python3
# Stands where a Python with Ray would be, on one node or several; FIRST says what happens: the first start finds its
# port taken or loses patience, the watch ends, Ray fails, or nobody ever joins.
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HOLDER = "import socket, sys, time; s = socket.create_server(('', int(sys.argv[1]))); print(flush=True); time.sleep(99)"
kind, argument = sys.argv[2], sys.argv[3]
first = os.environ.get("FIRST", "")
started, again, joined = (Path(os.environ["SLURMBUS_SPOOL"], name) for name in ("started", "again", "joined"))
joined.mkdir(exist_ok=True)

if kind == "--ray-watch":
    while first in ("hangs", "fails") or (first in ("port-taken", "impatient") and not again.exists()):
        time.sleep(0.01)
    print("[2026-01-01 00:00:00,000 W] rpc_client.h: Ray writes here, too")
    if first == "watch-ends" and not again.exists():
        again.touch()
        sys.exit("no head within Ray's own patience")
    print("slurmbus-ray-watch", json.dumps({"ray": "0", "token": True}))
    while len(alive := [path.name for path in joined.iterdir()]) < int(sys.argv[4]):
        time.sleep(0.01)
    print("slurmbus-ray-watch", json.dumps({"alive": alive}), flush=True)
elif first == "port-taken" and not started.exists():
    started.touch()
    port = str(json.loads(argument)["port"])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, port], stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        holder.stdout.readline()
        sys.stderr.write("Address already in use\n")
        os._exit(1)
elif first == "impatient" and not started.exists():
    started.touch()
    sys.exit("The current node timed out during startup. This could happen because it is slow.")
elif first in ("port-taken", "impatient"):
    again.touch()
elif first == "fails":
    sys.exit("no memory")
if kind == "--ray-start":
    (joined / json.loads(argument)["node_ip_address"]).write_text(argument + "\n")
time.sleep(1000)
