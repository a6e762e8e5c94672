"""The same load against Arbor and against a peer, side by side in one run, with a table of ratios.

`python -m benchmarks` (`make bench`) starts a fresh Arbor and a fresh Synapse, both on SQLite, and runs each
scenario of `scenarios` against one and then the other, so that whatever else the machine is doing hits both
alike. `measure` counts what the servers spend, over all of their processes; the load generator's own time
does not count. `report` prints the table and says which row meets the bar.

The figure to trust is server CPU time per operation: throughput and latency depend on what else the machine
does.
"""
