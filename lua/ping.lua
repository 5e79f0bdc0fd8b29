-- include: state
-- ping: finds out whether the server runs scripts on the key and takes writes. A master that has become a replica
-- doesn't, nor does a server that is over its maxmemory: it refuses ZADD, even one that adds nothing.
-- Atomic and safe to run twice, since it changes nothing.
--
-- KEYS  1 state  hash
--       2 queue  sorted set
-- Returns 'ok', or 'foreign - <error>' when the first key is no hash.
redis.call('ZADD', KEYS[2], 'XX', 0, '') -- no member has this name, so there is none to change
return 'ok'
