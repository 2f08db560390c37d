"""The commands of ``zcrpc``, a module for each; those of the laboratory are in `zcrpc.lab.commands`."""
