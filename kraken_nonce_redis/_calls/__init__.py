"""How a client's private call is made, made again, and settled; no I/O but in the guards."""
