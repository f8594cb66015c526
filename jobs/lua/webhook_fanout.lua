-- needs webhooks
-- Turns a message of the outbox into a delivery for everyone who is to be told, and removes it.
-- ARGV: prefix, message, tenant, type, job, body (JSON), ids of the deliveries (JSON object:
--       endpoint, or '' for the job's own webhook -> id), the job's own webhook or '', its host,
--       name under which the body is kept
-- Returns the ids of the new deliveries. Ids follow from what happened and who is told, so that
-- doing it again makes nothing new. A job that was deleted meanwhile tells nobody, and an endpoint
-- that no longer wants to know is not told.
local message, tenant, event, job = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if #redis.call('XRANGE', P .. 'outbox', message, message) == 0 then return {} end
local made = {}

local function tell(id, endpoint, url, host, failure)
  local d = {
    id = id, tenant = tenant, endpoint = endpoint, job = job, type = event, url = url,
    host = host, message = ARGV[10], body = ARGV[6],
  }
  if deliver(d, failure) then made[#made + 1] = id end
end

local record = load(job)
if record and record.deleted == '' then
  local wanted = P .. 'tenant:' .. tenant .. ':webhooks:' .. event
  for endpoint, id in pairs(cjson.decode(ARGV[7])) do
    if endpoint == '' then
      tell(id, '', ARGV[8], ARGV[9])
    elseif redis.call('SISMEMBER', wanted, endpoint) == 1 then
      local seen = redis.call('HMGET', hook(endpoint), 'host', 'state')
      -- Kept for a replay: who is disabled for a while misses nothing.
      tell(id, endpoint, '', seen[1], seen[2] == 'disabled' and 'endpoint_disabled' or nil)
    end
  end
end
redis.call('XDEL', P .. 'outbox', message)
return made
