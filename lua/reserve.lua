-- reserve: hands out the next `count` nonces, consecutive and above every earlier one.
-- Atomic because another caller must not come between reading the last nonce and writing the new one.
-- Run twice, it hands out a second block; the first is skipped, never reused.
--
-- KEYS  1 state   hash
--       2 log     stream, lib/trail.lua; may be missing
--       3 leases  stream, only to note each block
-- ARGV  1 floor   decimal ns, highest nonce that the caller has seen, '0' for none
--       2 count   1 to 1000000
--       3 name    of who does it, percent-encoded, for the log
-- Returns 'ok <first> <last>' (decimal ns), 'foreign <field> <value>' or 'overflow <stored>'; the latter two change
--         nothing.
local LOG, LEASES = KEYS[2], KEYS[3]
-- include: block
-- include: trail
local stored = redis.call('HGET', KEYS[1], 'nonce')
local nonce, version = read_nonce(stored)
if not version then return 'foreign ' .. named('nonce', stored) end
local first, last, healed = allocate(nonce, ARGV[1], clock(), tonumber(ARGV[2]))
if not first then return 'overflow ' .. (nonce or ARGV[1]) end
redis.call('HSET', KEYS[1], 'nonce', (nonce and version or VERSION) .. last)
if healed then note(LOG, 'healed', first, ARGV[3], '', 'floor', ARGV[1], 'stored', nonce or '') end
note(LEASES, 'reserved', first, ARGV[3], '', 'last', last)
return 'ok ' .. first .. ' ' .. last
