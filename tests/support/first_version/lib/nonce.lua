-- include: decimal
-- The nonce rules. State: hash field `nonce`, the highest nonce ever handed out for the key.

local HIGHEST = '9223372036854775807' -- Kraken's published type is int64
local LOST_STATE_MARGIN = 1000000000  -- ns

-- clock(): server time in microseconds, as a string. TIME gives the microseconds without leading zeros.
local function clock()
  local time = redis.call('TIME')
  return time[1] .. ('00000' .. time[2]):sub(-6)
end

-- foreign(stored): whether a stored value is no nonce of ours.
local function foreign(stored)
  return stored and (not stored:match('^[1-9]%d*$') or greater(stored, HIGHEST))
end

-- allocate(stored, floor, now, count): first and last of `count` nonces, or nil when they would pass int64.
-- They begin at the server's time `now` (microseconds) or above the stored nonce, whichever is higher. `floor` is the
-- highest nonce that the caller has seen ('0': none). A floor above the stored nonce proves that state was lost;
-- the margin covers what other callers have seen meanwhile.
local function allocate(stored, floor, now, count)
  local first = now .. '000'
  if stored and not greater(first, stored) then first = add(stored, 1) end
  if floor ~= '0' and greater(floor, stored or '0') then
    local healed = add(floor, 1 + LOST_STATE_MARGIN)
    if greater(healed, first) then first = healed end
  end
  local last = add(first, count - 1)
  if greater(last, HIGHEST) then return nil end
  return first, last
end
