-- Notes that the journal has a job's last change. ARGV: prefix, id, score that it was listed with
local key = P .. 'unjournalled'
if redis.call('ZSCORE', key, ARGV[2]) == ARGV[3] then return redis.call('ZREM', key, ARGV[2]) end
return 0
