-- Takes from a quota over a sliding window.
-- ARGV: prefix, name, subject, cost, limit, window in ms
-- Returns {allowed 1 or 0, remaining, reset ms, retry ms}
return take(ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
