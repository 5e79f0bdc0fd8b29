-- include: journal
-- include: pace
-- include: queue
-- inspect: reads the state and changes nothing.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
-- ARGV  1 what    'all'; 'waiters' for these, too; or 'lock' to leave the other fields out, so that they may have any
--                 value
-- Returns 'ok <now> <nonce> <lease> <left> <member> <asked> <granted> <set> <ends> <waiting> <pending> <cool>
--         <number>', then ' <waiter> <score>' for so many waiters, the first hundred at most, in their order, and
--         ' <reason>'
--           now      microseconds
--           nonce    last nonce, decimal ns, '-' for none
--           lease    first nonce of the lease; '-' when there is none or the lock is only offered to a member
--           left     microseconds until the lease or offer ends, 0 when it ran out
--           member   member that holds the lock or is offered it, '-' when the lock is free
--           asked    when it began to wait, microseconds; 0 when the lock is free
--           granted  when it got the lease, microseconds; 0 for none
--           set      when the lease was granted or extended last, or the offer made, microseconds; 0 when free
--           ends     when the lease or offer ends or has ended, microseconds; 0 when free
--           waiting  number of waiters
--           pending  number of calls that wait to be settled or told, also if the lease of one has only just run out
--           cool     microseconds until the cool-down ends, 0 for none
--           waiter   a member
--           score    as in lib/queue.lua
--           reason   of the cool-down
--         or 'foreign <field> <value>'.
local all = ARGV[1] ~= 'lock'
local strange = state.foreign_lock or all and state.foreign
if strange then return 'foreign ' .. strange end
local now = clock()
local waiting = redis.pcall('ZCOUNT', KEYS[2], '-inf', WAITERS)
if type(waiting) == 'table' then
  if all then return waiting end
  waiting = 0
end
local asked, granted = '0', '0'
if state.lease then
  asked, granted = state.ticket:match('^%d+%.(%d+)%.(%d+)$')
  if not asked then asked, granted = state.since, state.since end
elseif state.member then
  asked = state.ticket
end
local waiters = {}
if ARGV[1] == 'waiters' then
  waiters = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', WAITERS, 'WITHSCORES', 'LIMIT', 0, 100)
end
local cool, reason = cooling(state.cool_down, now)
local pending = tonumber((state.pending or '0'):match('^%d+')) + (abandoned_since(now) and 1 or 0)
local words = {
  'ok', now, state.nonce or '-', state.lease or '-', left(now), state.member or '-', asked, granted,
  state.since or '0', whole((state.since or 0) + (state.term or 0)),
  whole(waiting), whole(pending), whole(cool), whole(#waiters / 2),
}
for _, word in ipairs(waiters) do words[#words + 1] = word end
words[#words + 1] = reason
return table.concat(words, ' ')
