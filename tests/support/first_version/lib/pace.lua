-- include: decimal
-- How often calls may start. All times are server time in microseconds, as numbers (exact below 2^53).
--
-- State hash fields:
--   pace      '<started> <opened> <drained> <start> ...', 0 for never:
--             started  the last start
--             opened   begin of the startup window
--             drained  when Kraken's counter, as we count it, is back at zero
--             start    the latest starts in the startup window, oldest first
--   cool_down '<since> <term> <reason>': no call starts before since + term
--
-- Settings, one argument: '' for no pace, or seven whole numbers, times in microseconds:
--   '<min_interval> <startup_window> <startup_rate> <startup_interval> <capacity> <cost> <protected>'
--   capacity   what the counter may hold, as the time that it takes to drain; 0 for no counter
--   cost       what this call adds, as the time that it takes to drain
--   protected  1 when the startup window counts for this call

-- A second in which starts are counted; longer, since requests travel unequally long and Kraken counts arrivals.
local SECOND = 1050000

local function numbers(text)
  local list = {}
  for number in text:gmatch('%d+') do list[#list + 1] = tonumber(number) end
  return list
end

-- read_pace(field, settings, now): what is stored, without times that only a clock set back could explain, and whether
-- there were any.
local function read_pace(field, settings, now)
  local stored = field and numbers(field) or { 0, 0, 0 }
  local capacity, cost = settings[5], settings[6]
  local pace = {
    started = math.min(stored[1], now),
    opened = math.min(stored[2], now),
    drained = math.min(stored[3], now + math.max(capacity, cost)),
    starts = {},
  }
  for i = 4, #stored do
    if stored[i] <= now then pace.starts[#pace.starts + 1] = stored[i] end
  end
  return pace, stored[1] > now
end

-- written(pace): the value of the field `pace`.
local function written(pace)
  local words = { whole(pace.started), whole(pace.opened), whole(pace.drained) }
  for _, at in ipairs(pace.starts) do words[#words + 1] = whole(at) end
  return table.concat(words, ' ')
end

-- earliest(pace, settings, now): when a call may start, and what it waits for.
local function earliest(pace, settings, now)
  local min_interval, window, rate, interval, capacity, cost, protected = unpack(settings)
  local at, cause = now, ''
  local function wait(time, why)
    if time > at then at, cause = time, why end
  end
  if pace.started > 0 then wait(pace.started + min_interval, 'interval') end
  if capacity > 0 and cost > 0 then wait(pace.drained + cost - capacity, 'counter') end
  if rate > 0 and protected == 1 and now - pace.started < window and now - pace.opened < window then
    local starts = pace.starts
    local nth = starts[#starts - rate + 1]
    if nth and starts[#starts] - nth < SECOND then
      wait(math.min(math.max(nth + SECOND, starts[#starts] + interval), pace.opened + window), 'startup')
    end
  end
  return at, cause
end

-- delays(booked, time, settings): whether a call that starts at a time makes one wait longer that is booked for a time;
-- `settings` of the former, nil for no pace.
local function delays(booked, time, settings)
  return settings and settings[6] > 0 or time + (settings and settings[1] or 0) > booked
end

-- start(pace, settings, now): the value of the field `pace` once a call has started.
local function start(pace, settings, now)
  local _, window, rate, _, _, cost = unpack(settings)
  local latest, starts = pace.starts, {}
  if rate > 0 and (pace.opened == 0 or now - pace.started >= window) then pace.opened, latest = now, {} end
  if rate > 0 and now - pace.opened < window then
    for i = math.max(#latest - rate + 2, 1), #latest do starts[#starts + 1] = latest[i] end
    starts[#starts + 1] = now
  end
  pace.started, pace.drained, pace.starts = now, math.max(pace.drained, now) + cost, starts
  return written(pace)
end

-- cooling(field, now): microseconds until a cool-down is over, 0 when there is none, its reason, and the field's new
-- value when the server's clock went back, so that the cool-down doesn't last longer for it.
local function cooling(field, now)
  if not field then return 0, '' end
  local since, term, reason = field:match('^(%d+) (%d+) (.*)$')
  if greater(since, now) then return tonumber(term), reason, now .. ' ' .. term .. ' ' .. reason end
  return math.max(since - now + term, 0), reason
end
