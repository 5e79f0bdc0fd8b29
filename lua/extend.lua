-- extend: sets a new end for a lease that the caller still has, hands out a fresh block of nonces, and notes an intent.
-- Atomic because the lease must not end between the check and the write.
-- Run twice, the lease ends at least `term` after the second run, and the first block is skipped. An earlier intent
-- becomes pending only once. The intent that the first run noted may become pending, too; settling it does no harm.
-- Run after a later one of its lease, as when the network delivers it late, it changes nothing.
--
-- KEYS  1 state   hash
--       2 log     stream, lib/trail.lua; may be missing
--       3 leases  stream, only to note each block
-- ARGV  1 floor   decimal ns, highest nonce that the caller has seen, '0' for none
--       2 member  as in acquire
--       3 term    microseconds from now to the new end
--       4 count   nonces in the new block
--       5 intent  as in acquire, for the next call; '' leaves the intent as it is
--       6 known   '1' when the outcome of an earlier call under this lease is known, '0' makes its intent pending
--       7 number  of this extension among those of its lease, from 1 on
--       8 how     'set' for an end that may be earlier than the present one, 'keep' for the later of the two
-- Returns 'extended <first nonce> <left>', with `left` in microseconds; 'late', 'lost', 'foreign <field> <value>' or
--         'overflow <stored>': nothing changed.
local LOG, LEASES = KEYS[2], KEYS[3]
-- include: changes
-- include: block
if state.foreign then return 'foreign ' .. state.foreign end
if state.member ~= ARGV[2] or not state.lease then return 'lost' end
local number, before = state.ticket:match('^(%d+)(.*)$')
if tonumber(ARGV[7]) < tonumber(number) then return 'late' end
if before == '' then before = '.' .. state.since .. '.' .. state.since end
local now, term = clock(), ARGV[3]
if ARGV[8] == 'keep' then term = whole(math.max(tonumber(term), tonumber(left(now)))) end
local first, last, healed = allocate(state.nonce, ARGV[1], now, tonumber(ARGV[4]))
if not first then return 'overflow ' .. state.nonce end
local held = lock(state.lease, now, term, ARGV[7] .. before, ARGV[2])
redis.call('HSET', KEYS[1], 'nonce', VERSION .. last, 'lock', held)
if ARGV[5] ~= '' then
  if ARGV[6] == '0' then shelve(now) end
  redis.call('HSET', KEYS[1], 'intent', first .. ' ' .. ARGV[5])
end
if healed or LEASES then
  local name, method = ARGV[2]:match(WHO)
  if healed then note(LOG, 'healed', first, name, method, 'floor', ARGV[1], 'stored', state.nonce or '') end
  note(LEASES, 'extended', first, name, method)
end
return 'extended ' .. first .. ' ' .. term
