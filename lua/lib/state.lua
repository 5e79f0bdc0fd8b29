-- include: nonce
-- The state of an API key, a hash. This part is no function, since every script needs it once: it reads KEYS[1] into
-- `state`, or returns if that is no hash. Fields with values that are not ours are left out; `state.foreign` names the
-- first one for the reply, and `state.foreign_lock` such a lock.
--
-- Its fields, next to `nonce`, and `pace` and `cool_down` in lib/pace.lua:
--   lock      who has the lock: '<lease> <since> <term> <ticket> <member>', absent when it is free.
--             lease   first nonce of the lease; '-' while the lock is only offered to the member; '~<asked>' while it
--                     is offered for a later time and high-priority waiters may go before the member, one after the
--                     other: of those in the queue the first with a ticket above `asked` was told so at `since`
--             since   start of the lease or offer, server time in microseconds
--             term    its length in microseconds
--             ticket  of an offer, the member's place in the queue; of a lease, the number of its last extension, '0'
--                     for none, and '.<asked>.<granted>', unless both of these are `since`: when the member began to
--                     wait and when it got the lease, server time in microseconds
--             member  '<process>:<number>-<round trip>.<random>|<name>|<method>', and '|<token>' if the caller gave one
--                     round trip  milliseconds, as its process has measured them; without it, the longest that counts
--                     name        for people: who it is, percent-encoded
--                     method      Kraken's name of the call that the lock is for, percent-encoded, '' for none
--   ticket    the last place in the queue that was given out: when that was, server time in microseconds, or a little
--             later, so that each is above the one before
--   overtaken how often in a row a high-priority waiter has gone before a normal one and delayed it
--   lost      the last member whose lease ended without a release
--   gone      members that have left while a request of theirs for the lock might still arrive, the latest 64, with
--             spaces between them; of each the part before '|'
--   intent    what the holder is about to do: '<nonce> <key> <method> <ids> <name>', absent when it changes nothing
--             nonce   nonce of its first request; a pending intent is found by it
--             key     digest of the API key
--             method  Kraken's name
--             ids     the cl_ord_id of each order, percent-encoded, separated by commas, '-' for none; a '+' before
--                     the first says that all were made up for this one call
--             name    of the holder, as in `member`
--   pending, pending:<nonce>  the journal, see lib/journal.lua
-- What the first version stored differs in the nonce; in tickets, which were numbers counted from 1; and in members and
-- intents, which had no name.

local LONGEST = 8192        -- bytes of a value
local DIGITS = 16           -- of a number that a Lua number can hold

local state
do
  local fields = redis.pcall(
    'HMGET', KEYS[1], 'nonce', 'lock', 'pace', 'cool_down', 'intent', 'pending', 'gone', 'ticket', 'overtaken'
  )
  if fields.err then
    local failure = tostring(fields.err)
    if not failure:find('WRONGTYPE', 1, true) then redis.call('HMGET', KEYS[1], 'nonce') end -- raises it
    return 'foreign - ' .. failure
  end
  local nonce, version = read_nonce(fields[1])
  local place, overtaken = fields[8] or nil, fields[9] or nil
  state = { nonce = nonce, version = version, pending = '0', place = place, overtaken = overtaken }
  local held, pace, cool_down, intent, pending, gone = fields[2], fields[3], fields[4], fields[5], fields[6], fields[7]
  local strange = not version and 'nonce'
  if held then
    local lease, since, term, ticket, member = held:match('^([-~%d]%d*) (%d+) (%d+) ([%d.]+) ([!-9;-~]+:%S.*)$')
    local asked = lease and lease:match('^~(%d*)$')
    local leased = lease and is_nonce(lease)
    if lease and #since <= DIGITS and #term <= DIGITS and #held <= LONGEST
      and (leased or lease == '-' or asked and #asked <= DIGITS)
      and (#ticket <= DIGITS and not ticket:find('%D') or leased and ticket:find('^%d+%.%d+%.%d+$')) then
      state.since, state.term, state.ticket, state.member = since, term, ticket, member
      state.asked = asked and (tonumber(asked) or 0)
      state.lease = leased and lease or nil
    else
      strange = strange or 'lock'
      state.foreign_lock = named('lock', held)
    end
  end
  if pace then
    state.pace = #pace <= LONGEST and pace:match('^%d+ %d+ %d+[ %d]*$')
    strange = strange or not state.pace and 'pace'
  end
  if cool_down then
    local since, term = cool_down:match('^(%d+) (%d+) ')
    state.cool_down = since and #since <= DIGITS and #term <= DIGITS and #cool_down <= LONGEST and cool_down
    strange = strange or not state.cool_down and 'cool_down'
  end
  if intent then
    local first = #intent <= LONGEST and intent:match('^(%d+) %S+ %S+ %S+ ?%S*$')
    state.intent = first and is_nonce(first) and intent
    strange = strange or not state.intent and 'intent'
  end
  if pending then
    local number, keys = pending:sub(1, LONGEST + 1):match('^(%d+)(.*)$')
    local ours = number and #number <= DIGITS and #pending <= LONGEST and keys:gsub(' %S+:%d+', '') == ''
    state.pending = ours and pending
    strange = strange or not ours and 'pending'
  end
  if gone then
    state.gone = #gone <= LONGEST and gone:match('^[!-9;-~]+:%S.*$')
    strange = strange or not state.gone and 'gone'
  end
  if place and (#place > DIGITS or not place:find('^%d+$')) then strange = strange or 'ticket' end
  if overtaken and (#overtaken > DIGITS or not overtaken:find('^%d+$')) then strange = strange or 'overtaken' end
  if strange then
    local values = {
      nonce = fields[1], lock = held, pace = pace, cool_down = cool_down, intent = intent, pending = pending,
      gone = gone, ticket = place, overtaken = overtaken,
    }
    state.foreign = named(strange, values[strange])
  end
end

-- lock(lease, since, term, ticket, member): the value for the field `lock`.
local function lock(lease, since, term, ticket, member)
  return lease .. ' ' .. since .. ' ' .. term .. ' ' .. ticket .. ' ' .. member
end
