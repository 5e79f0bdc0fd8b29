-- release: gives up what the member has (lease, offer or place in the queue) and hands the lock over.
-- Atomic because no other caller may get the lock between the end of a lease and the offer to the next waiter.
-- Run twice, the second run finds nothing to give up.
-- The lock is freed first, and that needs no memory. Whatever fails after it, such as the offer to the next waiter,
-- can't keep it held: then the waiters' heartbeats find it free.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
--       3 log     stream, lib/trail.lua; may be missing, and not needed for a known outcome without an intent
--       4 leases  stream, only to note each lease
-- ARGV  1 member  as in acquire
--       2 lease   first nonce of the lease that the caller thinks it holds, '0' for none
--       3 intent  nonce of the intent that the caller noted last, '0' for none
--       4 known   '1' when the outcome of its call is known or nothing was sent; '0' makes the intent pending
--       5 late    '1' when a request of the member for the lock may still arrive, which then gets nothing
-- Returns 'released'; 'lost' when the lease is known to have ended before (it ran out, or the state was lost);
--         'gone' when the member has no lease and Redis doesn't know why. It may have been released before. A caller
--         that has sent this only once knows that it was not. Or 'foreign - <error>', when the key is no hash.
--         Fields with values that are not ours are left alone.
local LOG, LEASES = KEYS[3], KEYS[4]
-- include: state
local member = ARGV[1]
local mine, known, late = state.member == member, ARGV[4] == '1', ARGV[5] == '1'
local quick = known and not late -- nothing to note, and nobody to hand over to
if mine then
  redis.call('HDEL', KEYS[1], 'lock')
  if state.intent and known then redis.call('HDEL', KEYS[1], 'intent') end
  quick = quick and redis.call('EXISTS', KEYS[2]) == 0
  if quick and not LEASES then return 'released' end
end

-- include: trail
if mine and LEASES and state.lease then
  local name, method = member:match(WHO)
  note(LEASES, 'lease', state.lease, name, method, 'granted', state.ticket:match('%.(%d+)$') or state.since)
  if quick then return 'released' end
end

-- include: queue
if mine then
  pcall(offer_next, clock())
  if known and not late then return 'released' end
end

-- include: ending
-- include: booking
if mine then
  if not known then shelve(clock()) end
  if late then note_gone(member) end
  return 'released'
end
if late then note_gone(member) end
if known and ARGV[3] ~= '0' and not state.foreign then -- somebody has made the intent pending
  local name = 'pending:' .. ARGV[3]
  local entry = redis.call('HGET', KEYS[1], name)
  if entry and is_entry(entry) then
    redis.call('HDEL', KEYS[1], name)
    recount()
    note_call('settled', ARGV[3], entry:match('^%d+ %l+ (.+)$'), 'result', 'known')
  end
end
local was_first = state.asked and first_to_ask() == member
if remove(member) and was_first and not state.foreign then
  pcall(invite, clock(), state.asked)
end
if redis.call('HGET', KEYS[1], 'lost') == member or greater(ARGV[2], state.nonce or '0') then return 'lost' end
return 'gone'
