"""A client in Python, in a process of its own: a workload over any stack's adapter.

python -m peers.client     takes `Order` as JSON on standard input, gives `Measured`
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from peers.children import Order, allow_many_connections
from peers.connection import Connection, Task
from peers.window import Measured, Window
from zcrpc.lab.processes import serve


def run(order: Order) -> Measured:
    """Raises what the stack raises: a call that fails ends the measurement."""
    allow_many_connections()
    adapter = import_module(f"peers.adapters.{order.adapter}")
    return adapter.RUNTIME.run(_measure(adapter, order))  # type: ignore[no-any-return]


async def _measure(adapter: ModuleType, order: Order) -> Measured:
    task = Task.of(order.work, order.payload, order.items)
    idle = [await _connect(adapter, order, task) for _ in range(order.idle)]
    active = [await _connect(adapter, order, task) for _ in range(order.connections)]
    window = Window(order.server_pid, order.warm_up_seconds, order.seconds)
    callers = [caller for each in active for caller in each.callers(task, window, order.in_flight)]
    await adapter.RUNTIME.together(*callers)
    for connection in active + idle:
        await connection.close()
    return window.result()


async def _connect(adapter: ModuleType, order: Order, task: Task) -> Connection:
    connection: Connection = await adapter.connect(order.port, order.work, order.payload)
    await connection.begin(task)
    return connection


if __name__ == "__main__":
    serve(Order, run)
