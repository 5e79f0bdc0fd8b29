-- How the last nonce is stored: in the state's field `nonce`, '2:' and the highest nonce ever handed out for the key,
-- '2:0' for none. The 2 is the version of all that is stored. Scripts of the first version refuse such a nonce, and so
-- the whole state; they stored the nonce alone.
--
-- Nonces are decimal strings. A nonce has 19 digits, but a Lua number is a double, which is exact only up to 2^53
-- (16 digits). So a whole nonce is never converted to a number. Microseconds and counts are below 2^53 and may be.

local unpack = unpack or table.unpack -- luacheck: ignore 143 (since Lua 5.2 it is there)
local VERSION = '2:'
local HIGHEST = '9223372036854775807' -- Kraken's published type is int64

-- greater(a, b): a > b, for decimals without leading zeros.
local function greater(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end

-- is_nonce(text): whether a text is a nonce.
local function is_nonce(text)
  return text:find('^[1-9]%d*$') and not greater(text, HIGHEST)
end

-- read_nonce(stored): the nonce in a stored value, nil for none, and the version that stored it, '' for the first one
-- or when nothing is stored; no version when the value is not ours.
local function read_nonce(stored)
  if not stored then return nil, '' end
  local nonce = stored:match('^2:([1-9]%d*)$')
  if nonce and not greater(nonce, HIGHEST) then return nonce, VERSION end
  if stored == '2:0' then return nil, VERSION end
  if is_nonce(stored) then return stored, '' end
  return nil, nil
end

-- named(field, value): how a reply names a field with a value that is not ours: its name, and the value's beginning.
local function named(field, value)
  return field:sub(1, 40):gsub('%s', '?') .. ' ' .. value:sub(1, 60)
end
