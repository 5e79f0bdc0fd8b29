"""The folder that `kraken-nonce run` puts on the path of a Python, which runs the `sitecustomize` in it."""
