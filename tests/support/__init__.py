"""What the tests share: servers, proxies, workers, judges."""
