-- include: pace
-- reset_startup: clears the startup window, so that the next call opens a new one. The counter stays.
-- Atomic because a start recorded between reading and writing would be lost.
-- Safe to run twice.
--
-- KEYS  1 state  hash
-- Returns 'ok', or 'foreign - <error>' when the key is no hash: nothing changed. A pace with a value that is not ours
--         is removed; other fields may have any value.
local started, _, drained = unpack(numbers(state.pace or ''))
if started and math.max(started, drained) < 1e16 then
  redis.call('HSET', KEYS[1], 'pace', whole(started) .. ' 0 ' .. whole(drained))
else
  redis.call('HDEL', KEYS[1], 'pace')
end
return 'ok'
