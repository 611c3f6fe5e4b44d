#!/opt/payload/bin/python
"""torchrun for Debian's PyTorch, which was built without libuv: its c10d rendezvous doesn't look at USE_LIBUV."""

import functools

from torch.distributed import run
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend as backend

backend.TCPStore = functools.partial(backend.TCPStore, use_libuv=False)
run.main()
