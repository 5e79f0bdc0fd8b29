-- include: lease
-- What only those scripts need that look at the journal.

-- abandoned_since(state, now): since when there has been an intent without a lease that runs, nil when there is none.
-- The next script that finds the lease over makes such an intent pending.
local function abandoned_since(state, now)
  if not state.intent then return nil end
  if not state.lease then return now end
  return left(state, now) == '0' and whole(state.since + state.term) or nil
end
