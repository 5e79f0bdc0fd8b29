"""What a bundle with this package needs besides its modules."""

from kraken_nonce_redis._redis.scripts import folder

datas = [(str(folder()), "kraken_nonce_redis/lua")]
