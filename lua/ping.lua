-- include: state
-- ping: finds out whether the server runs scripts on the key and takes writes. A master that has become a replica
-- doesn't.
-- Atomic and safe to run twice, since it changes nothing.
--
-- KEYS  1 state  hash
-- Returns 'ok', or 'foreign - <error>' when the key is no hash.
redis.call('HDEL', KEYS[1], '') -- no field has this name
return 'ok'
