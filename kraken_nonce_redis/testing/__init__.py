"""A simulated Kraken for your tests: a real HTTP server on this machine with Kraken's rules.

```python
from kraken_nonce_redis.testing import KrakenSimulator

with KrakenSimulator(latency=(0.001, 0.02)) as sim:
    api = krakenex.API(sim.key, sim.secret)
    api.uri = sim.url
    api.query_private("Balance")
    assert [request.error for request in sim.requests()] == [()]
```

`Fault` makes things go wrong on purpose; see docs/testing.md.

Importing this package needs nothing beyond the standard library. Creating a `KrakenSimulator`
needs aiohttp: `pip install 'kraken-nonce-redis[testing]'`.
"""

from ._faults import Fault
from ._limits import Limits
from ._records import SimulatedOrder, SimulatedRequest, SimulatedStrategy, SimulatedWithdrawal
from .simulator import KrakenSimulator

__all__ = [
    "Fault",
    "KrakenSimulator",
    "Limits",
    "SimulatedOrder",
    "SimulatedRequest",
    "SimulatedStrategy",
    "SimulatedWithdrawal",
]
