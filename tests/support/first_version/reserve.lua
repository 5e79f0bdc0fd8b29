-- include: nonce
-- reserve: hands out the next `count` nonces, consecutive and above every earlier one.
-- Atomic because reading the last nonce, comparing and writing must not interleave with another caller.
-- Run twice, it hands out a second block; the first is skipped, never reused.
--
-- KEYS  1 state   hash
-- ARGV  1 floor   decimal ns, highest nonce that the caller has seen, '0' for none
--       2 count   1 to 1000000
-- Returns 'ok <first> <last>' (decimal ns), 'foreign <value>' or 'overflow <stored>'; the latter two change nothing.
local stored = redis.call('HGET', KEYS[1], 'nonce')
if foreign(stored) then return 'foreign ' .. stored end
local first, last = allocate(stored, ARGV[1], clock(), tonumber(ARGV[2]))
if not first then return 'overflow ' .. (stored or ARGV[1]) end
redis.call('HSET', KEYS[1], 'nonce', last)
return 'ok ' .. first .. ' ' .. last
