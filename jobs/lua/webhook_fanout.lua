-- needs webhooks
-- Turns a message of the outbox into a delivery for everyone who is to be told, and removes it.
-- ARGV: prefix, message, tenant, type, job, version, body (JSON), the job's own webhook or '',
--       its host
-- Returns the ids of the new deliveries. Ids follow from what happened and who is told, so that
-- doing it again makes nothing new. A job that was deleted meanwhile tells nobody.
local message, tenant, event, job = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if #redis.call('XRANGE', P .. 'outbox', message, message) == 0 then return {} end
local made = {}

local function tell(endpoint, url, host, failure)
  local name = table.concat({job, ARGV[6], event, endpoint ~= '' and endpoint or url}, ' ')
  local id = 'dlv_' .. string.sub(redis.sha1hex(name), 1, 32)
  local d = {
    id = id, tenant = tenant, endpoint = endpoint, job = job, type = event, url = url,
    host = host, body = ARGV[7],
  }
  if deliver(d, failure) then made[#made + 1] = id end
end

local record = load(job)
if record and record.deleted == '' then
  local endpoints = redis.call('SMEMBERS', P .. 'tenant:' .. tenant .. ':webhooks:' .. event)
  table.sort(endpoints)
  for _, endpoint in ipairs(endpoints) do
    local seen = redis.call('HMGET', hook(endpoint), 'host', 'state')
    -- Kept for a replay: who is disabled for a while misses nothing.
    local off = seen[2] == 'disabled' and 'endpoint_disabled' or nil
    tell(endpoint, '', seen[1], off)
  end
  if ARGV[8] ~= '' then tell('', ARGV[8], ARGV[9]) end
end
redis.call('XDEL', P .. 'outbox', message)
return made
