"""zcrpc beside its peers: the floors, which are no RPC at all, and what else a user could pick.

PYTHONPATH=benchmarks python -m peers     the whole suite; `make peers`

`stacks` lists who is compared, with an adapter each where the client is Python; `workloads` what they do; `client` runs
a workload over any adapter, so that all of them are measured by one loop; `suite` puts servers, clients and rounds
together. Other benchmarks take the servers alone: `zcrpc_server`, `c_floor`, `uvloop_floor`.
"""

from peers.servers import Peer, c_floor, uvloop_floor, zcrpc_server

__all__ = ["Peer", "c_floor", "uvloop_floor", "zcrpc_server"]
