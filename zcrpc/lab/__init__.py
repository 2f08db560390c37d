"""The laboratory: workloads that show what a lock strategy, or a way of receiving, costs in a live server.

Servers and load generators run in processes of their own (`zcrpc.lab.processes`), so that neither is measured with
the other.
"""
