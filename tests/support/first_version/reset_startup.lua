-- include: lease
-- include: pace
-- reset_startup: forgets the startup window, so that the next call opens a new one. The counter stays.
-- Atomic because a start recorded between reading and writing would be forgotten.
-- Safe to run twice.
--
-- KEYS  1 state  hash
-- Returns 'ok' or 'foreign <value>': nothing changed.
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
if state.pace then
  local started, _, drained = unpack(numbers(state.pace))
  redis.call('HSET', KEYS[1], 'pace', whole(started) .. ' 0 ' .. whole(drained))
end
return 'ok'
