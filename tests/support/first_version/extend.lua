-- include: lease
-- extend: sets a new end for a lease that is still the caller's, with a fresh block of nonces; notes an intent.
-- Atomic because the lease must not end between the check and the write.
-- Run twice, the end is the same; the first block is skipped. An earlier intent becomes pending once only, but one that
-- the first run noted becomes pending as well: settling it finds nothing that has not been found.
--
-- KEYS  1 state   hash
-- ARGV  1 floor   decimal ns, highest nonce that the caller has seen, '0' for none
--       2 member  as in acquire
--       3 term    microseconds from now to the new end
--       4 count   nonces in the new block
--       5 intent  as in acquire, for the next call; '' leaves the intent as it is
--       6 known   '1' when the outcome of an earlier call under this lease is known, '0' when that becomes pending
-- Returns 'extended <first nonce>'; 'lost', 'foreign <value>' or 'overflow <stored>': nothing changed.
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
if state.member ~= ARGV[2] or not state.lease then return 'lost' end
local now = clock()
local first, last = allocate(state.nonce, ARGV[1], now, tonumber(ARGV[4]))
if not first then return 'overflow ' .. state.nonce end
redis.call('HSET', KEYS[1], 'nonce', last, 'lock', lock(state, state.lease, now, ARGV[3], '0', ARGV[2]))
if ARGV[5] ~= '' then
  if ARGV[6] == '0' then shelve(state, now) end
  redis.call('HSET', KEYS[1], 'intent', first .. ' ' .. ARGV[5])
end
return 'extended ' .. first
