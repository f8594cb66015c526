-- Takes back jobs whose lease has run out. ARGV: prefix, most jobs at once
-- Returns {id, 'requeued' | 'poisoned' | 'cancelled', id, ...}
local outcome = {}
local expired = redis.call(
  'ZRANGEBYSCORE', P .. 'leases', '-inf', '(' .. int(now), 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(expired) do
  local job = load(id)
  if job and job.state == 'running' then
    count('leases_lost')
    outcome[#outcome + 1] = id
    outcome[#outcome + 1] = give_up(job, 'the lease ran out', 'lose', true, 0)
  else
    redis.call('ZREM', P .. 'leases', id)
  end
end
return outcome
