-- include: queue
-- The journal of calls that change something:
--   pending:<nonce>  the entry for a call whose outcome its own caller has not told of:
--             '<since> <state> <key> <method> <ids> <name>', and ' <at> <txids>' for the states that are results
--             since   server time in microseconds when it became pending, which is when its lease ended
--             state   'new'; 'found', 'absent', 'partly' or 'unknown': the result that a later holder has found out
--                     and is about to tell; 'reported' once it has told that it is unknown
--             at      server time in microseconds when that was noted
--             txids   Kraken's, percent-encoded, one for each of the ids with ',' between them; '-' for an order that
--                     was not found
--             The others are as in the field `intent`; an entry of the first version has no name.
--   pending   '<number>' of entries in a state other than 'reported', followed by ' <key>:<number>' for each API key
--             that has any, as far as they fit; absent for none

-- is_entry(entry): whether a stored value is an entry of the journal.
local function is_entry(entry)
  if #entry > 2 * LONGEST then return false end
  local since, word, rest = entry:match('^(%d+) (%l+) %S+ %S+ %S+(.*)$')
  if not since or #since > DIGITS then return false end
  if word == 'new' or word == 'reported' then return rest == '' or rest:find('^ %S+$') ~= nil end
  local at = rest:match('^ %S+ (%d+) %S+$')
  return at ~= nil and #at <= DIGITS and (' found absent partly unknown '):find(' ' .. word .. ' ', 1, true) ~= nil
end

-- abandoned_since(now): since when there has been an intent without a lease that runs, nil when there is none.
-- The next script that finds the lease over makes such an intent pending.
local function abandoned_since(now)
  if not state.intent then return nil end
  if not state.lease then return now end
  return left(now) == '0' and whole(state.since + state.term) or nil
end
