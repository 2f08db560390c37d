"""Prediction: what a lock strategy costs on more cores than there are at hand.

A discrete-event model of cache lines. A line is in one place at a time; who wants to change it queues for it, and
moving it costs what the machine's topology says. A lock is a little program over lines (`programs`), its fallback path
included; nothing else of it is modelled. `engine` moves lines and threads, `workload` drives programs in a closed loop
(to validate) or by open arrivals (to predict), `published` compares with what others measured, and `prediction` says
what follows for the seed workload.

What is assumed, besides the costs in a topology file:

- *b*, the RMWs that a CPU gets done each time it owns a line that others wait for. Hardware does not promise one; it
  is swept and printed; the two defaults (`workload`) are calibrated, each on one published point.
- A CPU gets its next RMW in without losing the line only if it comes within `engine.LINGER_NS`.
- Lines queue first come, first served. Instructions between the RMWs cost what the workload says, no more.
"""
