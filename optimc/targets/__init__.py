"""The runtimes that engines are built for."""
