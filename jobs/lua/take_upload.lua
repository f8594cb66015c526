-- Gives an upload to one job. ARGV: prefix, upload id, tenant, job id
-- Returns {'ok'}, {'missing'} or {'used', job id}
local key = P .. 'upload:' .. ARGV[2]
local seen = redis.call('HMGET', key, 'tenant', 'used_by', 'expires')
if seen[1] ~= ARGV[3] then return {'missing'} end
if seen[2] and seen[2] ~= '' then
  if seen[2] == ARGV[4] then return {'ok'} end
  return {'used', seen[2]}
end
if tonumber(seen[3]) < now then return {'missing'} end
redis.call('HSET', key, 'used_by', ARGV[4])
return {'ok'}
