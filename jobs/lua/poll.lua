-- Answers one look at a job: the key, its rate, the job and its place, in one round trip.
-- ARGV: prefix, key digest, how old the last use may be unnoted in ms, quota's name, requests per
--       window that keys without a limit of their own may make (0 = any number), window in ms,
--       job id or '', mark that the caller has seen or ''
-- Returns {key's hash, what `take` returned and the limit, {tenant, state, mark, place in the
--         queue or -1, hash}}; each a flat list, empty from where on the look was refused or
--         nothing was found; the job's hash is left out if the mark is the one already seen
local key = key_in_force(ARGV[2], tonumber(ARGV[3]))
if #key == 0 then return {key, {}, {}} end

local own = {}
for i = 1, #key, 2 do own[key[i]] = key[i + 1] end
local limit = cjson.decode(own.limits)[ARGV[4] .. '_per_minute'] or tonumber(ARGV[5])
local taken = {}
if limit > 0 then
  taken = take(ARGV[4], own.id, 1, limit, tonumber(ARGV[6]))
  taken[5] = int(limit)
  if taken[1] == 0 then return {key, taken, {}} end
end

if ARGV[7] == '' then return {key, taken, {}} end
local hash = P .. 'job:' .. ARGV[7]
local seen = redis.call('HMGET', hash, 'tenant', 'state', 'version', 'updated', 'queue', 'deleted')
if not seen[2] or (seen[6] and seen[6] ~= '') then return {key, taken, {}} end
local place = -1
if seen[2] == 'queued' then
  local rank = redis.call('ZRANK', P .. 'queue:' .. seen[5], ARGV[7])
  if rank then place = rank + 1 end
end
-- Every change of a job raises its version; the time tells versions apart after Redis was rebuilt.
local mark = seen[3] .. '-' .. seen[4] .. '-' .. place
local job = {seen[1], seen[2], mark, place}
if mark ~= ARGV[8] then job[5] = redis.call('HGETALL', hash) end
return {key, taken, job}
