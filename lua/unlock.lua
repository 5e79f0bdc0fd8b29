-- unlock: ends the lease or offer of any member, and hands the lock over. For operators.
-- The lock is freed first, as in release.
-- Atomic because the lease that the operator saw may have ended since: only the lease of `member` is ended.
-- Run twice, the second run finds another holder and changes nothing.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
--       3 log     stream, lib/trail.lua; may be missing
-- ARGV  1 member  whose lease or offer to end; '' to remove a lock with a value that is not ours
--       2 name    of who does it, percent-encoded, for the log
-- Returns 'unlocked', 'free' when `member` is not the holder, or 'foreign - <error>', when the key is no hash: nothing
--         changed. Other fields may have any value.
local LOG = KEYS[3]
-- include: ending
if (state.member or state.foreign_lock and '') ~= ARGV[1] then return 'free' end
local lost, lease, ended = state.lease and state.member, state.lease, state.member or ''
free()
if lost then redis.pcall('HSET', KEYS[1], 'lost', lost) end
local now = clock()
local name, method = ended:match(WHO)
note(LOG, 'unlocked', lease or '', name, method, 'by', ARGV[2])
shelve(now)
pcall(offer_next, now)
return 'unlocked'
