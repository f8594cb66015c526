-- Put before every script. ARGV[1] is always the key prefix; the scripts' own arguments follow.
-- The loader (jobs/database.py) puts before this file:
--   TRANSITIONS  the table of jobs/lifecycle.py
--   LIMITS       numbers of the settings: lease_ms, max_attempts, events_per_job, ...
--
-- Keys, all below the prefix (one Redis, no cluster: keys are made here, not declared):
--   job:{id}                    hash, the record
--   job:{id}:events             stream of this job's events, progress included
--   job:{id}:previews           hash, number -> small picture of a running encode; expires
--   tenant:{t}:events           stream of the tenant's transitions
--   outbox                      stream of what webhooks must be told
--   jobs, jobs:{state}          sorted sets of ids by order of creation; below tenant:{t}: too
--   tenant:{t}:batch:{b}        sorted set of ids by order of creation
--   tenant:{t}:dedup            hash, digest of the work -> id
--   queue:{q}, running:{q}      sorted set by (priority, age); set of running ids
--   queues, paused              sets of queue names
--   leases                      running ids by end of lease, ms
--   unpublished                 queued ids that need a wake-up, by when it is due, ms
--   published                   queued ids with a wake-up sent, by when it was sent, ms
--   finished                    ended ids by when they ended, ms
--   unjournalled                ids whose last change the journal does not know yet, by time, us
--   trash                       ids being deleted, by time, ms
--   counters                    hash, name -> number
--
-- Record fields, besides what the client gave: state, attempt, strikes, version, order (unique
-- microsecond of creation), nonce and worker and lease_until (of the latest claim), cancel and
-- finish ('1' if asked), last (name of the worker's call or transition that set the state),
-- progress, result, report, failure (JSON), previews (how many there were), attempts (a JSON object
-- per line), created, queued, started, finished, updated, published, not_before (ms), accepted ('1'
-- once the submitter knows of the job), submission, body, dedup, deleted.

local P = ARGV[1] .. ':'

local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = math.floor(now_us / 1000)

-- A submitter publishes its own job within this time, ms.
local PATIENCE = 5000

-- Lua writes large numbers with an exponent unless told otherwise.
local function int(number)
  return string.format('%.0f', number)
end

local function count(name, by)
  redis.call('HINCRBY', P .. 'counters', name, by or 1)
end

local LOADED = {
  'id', 'tenant', 'state', 'queue', 'priority', 'attempt', 'strikes', 'order', 'version', 'nonce',
  'worker', 'webhook', 'batch', 'cancel', 'finish', 'queued', 'not_before', 'deleted', 'dedup',
  'body', 'attempts', 'submission', 'last',
}

-- Returns the fields that the scripts decide on, absent ones as '', or nil without such a job.
local function load(id)
  local values = redis.call('HMGET', P .. 'job:' .. id, unpack(LOADED))
  if not values[3] then return nil end
  local job = {}
  for i, name in ipairs(LOADED) do job[name] = values[i] or '' end
  job.attempt = tonumber(job.attempt)
  job.strikes = tonumber(job.strikes)
  job.version = tonumber(job.version)
  return job
end

-- True if the caller's token is the running attempt's.
local function holds(job, attempt, nonce)
  return job ~= nil and job.deleted == '' and job.state == 'running'
    and job.attempt == tonumber(attempt) and job.nonce == nonce
end

-- True if this very attempt already made the asked move: a repeat after a lost reply.
local function repeats(job, attempt, nonce, name)
  return job ~= nil and job.deleted == '' and job.state ~= 'running' and job.last == name
    and job.attempt == tonumber(attempt) and job.nonce == nonce
end

local function refuse_stale(job, write)
  count('stale_writes_refused{write="' .. write .. '"}')
  if job == nil or job.deleted ~= '' then return {'stale', 'the job is gone'} end
  return {'stale', 'the job is ' .. job.state .. ' in attempt ' .. job.attempt}
end

-- Returns {status, hash as a flat list}: the answer of every script that ends with a record.
local function answer(status, id)
  return {status, redis.call('HGETALL', P .. 'job:' .. id)}
end

local function emit(job, event, data, tenant_too)
  local entry = {
    'type', event, 'job', job.id, 'tenant', job.tenant, 'state', job.state,
    'attempt', int(job.attempt), 'version', int(job.version), 'at', int(now), 'data', data or '{}',
  }
  redis.call('XADD', P .. 'job:' .. job.id .. ':events',
    'MAXLEN', '~', LIMITS.events_per_job, '*', unpack(entry))
  if tenant_too then
    redis.call('XADD', P .. 'tenant:' .. job.tenant .. ':events',
      'MAXLEN', '~', LIMITS.events_per_tenant, '*', unpack(entry))
  end
  return entry
end

-- Writes fields of a job without moving it, and tells about it.
local function touch(job, sets, event, data, tenant_too)
  job.version = job.version + 1
  sets.version = int(job.version)
  sets.updated = int(now)
  local flat = {}
  for name, value in pairs(sets) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.call('HSET', P .. 'job:' .. job.id, unpack(flat))
  if event then return emit(job, event, data, tenant_too) end
end

-- The one place that changes a state. `sets` are further fields to write, `data` the event's own
-- JSON. Everything is checked before the first write: a script that fails half-way is not undone.
local function move(job, name, sets, data)
  local rule = TRANSITIONS[name]
  if not rule then error('no transition ' .. name) end
  if (rule.from or '') ~= job.state then
    error(name .. ' leads from ' .. tostring(rule.from) .. ', not from ' .. job.state)
  end
  local tenant = P .. 'tenant:' .. job.tenant .. ':'

  if rule.from then
    redis.call('ZREM', P .. 'jobs:' .. rule.from, job.id)
    redis.call('ZREM', tenant .. 'jobs:' .. rule.from, job.id)
  end
  redis.call('ZADD', P .. 'jobs:' .. rule.to, job.order, job.id)
  redis.call('ZADD', tenant .. 'jobs:' .. rule.to, job.order, job.id)

  if rule.from == 'queued' then
    redis.call('ZREM', P .. 'queue:' .. job.queue, job.id)
    redis.call('ZREM', P .. 'unpublished', job.id)
    redis.call('ZREM', P .. 'published', job.id)
  elseif rule.from == 'running' then
    redis.call('ZREM', P .. 'leases', job.id)
    redis.call('SREM', P .. 'running:' .. job.queue, job.id)
  elseif rule.from then
    redis.call('ZREM', P .. 'finished', job.id)
  end

  if rule.to == 'queued' then
    -- A job that comes back keeps its place: `queued` is when a person last asked for it.
    job.queued = sets.queued or job.queued
    local place = (9 - tonumber(job.priority)) * 1e13 + tonumber(job.queued)
    -- Who submits or retries a job sends its wake-up; for one that comes back only the reaper does.
    local grace = rule.from == 'running' and 0 or PATIENCE
    local due = tonumber(sets.not_before or '') or now + grace
    redis.call('SADD', P .. 'queues', job.queue)
    redis.call('ZADD', P .. 'queue:' .. job.queue, int(place), job.id)
    redis.call('ZADD', P .. 'unpublished', int(due), job.id)
    sets.published = ''
    sets.not_before = sets.not_before or ''
  elseif rule.to == 'running' then
    redis.call('ZADD', P .. 'leases', sets.lease_until, job.id)
    redis.call('SADD', P .. 'running:' .. job.queue, job.id)
  else
    redis.call('ZADD', P .. 'finished', int(now), job.id)
    sets.finished = int(now)
  end

  local line
  if rule.to == 'running' then
    line = {n = int(sets.attempt), worker = sets.worker, at = int(now)}
  elseif rule.finish then
    line = {n = int(job.attempt), ['end'] = rule.finish, at = int(now)}
  end
  if line then
    local lines = job.attempts .. cjson.encode(line) .. '\n'
    -- A job that is released for ever must not grow for ever: the oldest lines go.
    while #lines > 16384 do lines = string.gsub(lines, '^[^\n]*\n', '', 1) end
    sets.attempts = lines
  end

  job.state = rule.to
  job.attempt = tonumber(sets.attempt or job.attempt)
  sets.state = rule.to
  sets.last = sets.last or name
  local entry = touch(job, sets, rule.event, data, true)
  count('transitions{from="' .. (rule.from or 'none') .. '",to="' .. rule.to .. '"}')
  if rule.to == 'failed' then
    local code = string.gsub(cjson.decode(sets.failure).code, '[^%w_]', '_')
    count('jobs_failed{code="' .. code .. '"}')
  end
  if rule.journal then redis.call('ZADD', P .. 'unjournalled', int(now_us), job.id) end
  if rule.webhook then
    -- The job's own webhook is told of its end, an endpoint of whatever it wants.
    local own = rule.to ~= 'queued' and rule.to ~= 'running' and job.webhook or ''
    if own ~= '' or redis.call('EXISTS', tenant .. 'webhooks:' .. rule.webhook) == 1 then
      redis.call('XADD', P .. 'outbox', '*', 'told', rule.webhook, 'webhook', own, unpack(entry))
    end
  end
end

-- Ends a running attempt that did not end by itself. Returns what became of the job.
local function give_up(job, reason, name, strike, delay_ms)
  local strikes = job.strikes + (strike and 1 or 0)
  -- `last` is what was asked, not what became of it: a repeated release is answered alike, and
  -- nothing that the holder of a lost lease still sends can be taken for a repeat.
  local sets = {strikes = int(strikes), progress = '', last = name}
  if job.cancel == '1' then
    move(job, 'obey_cancel', sets)
    return 'cancelled'
  end
  if strikes >= LIMITS.max_attempts then
    sets.failure = cjson.encode({
      code = 'poisoned',
      message = 'given up after ' .. int(strikes) .. ' attempts that did not come to an end',
      detail = 'last: attempt ' .. int(job.attempt) .. ' by ' .. job.worker .. ': ' .. reason,
    })
    move(job, 'poison', sets, sets.failure)
    return 'poisoned'
  end
  if delay_ms > 0 then sets.not_before = int(now + delay_ms) end
  move(job, name, sets, cjson.encode({reason = reason, strikes = strikes}))
  return 'requeued'
end

-- Returns the hash of an API key as a flat list, empty if it is unknown, revoked or expired. Notes
-- its use unless that was done less than `unnoted_ms` ago.
local function key_in_force(digest, unnoted_ms)
  local key = P .. 'key:' .. digest
  local seen = redis.call('HMGET', key, 'id', 'revoked', 'expires', 'used')
  if not seen[1] or (seen[2] and seen[2] ~= '') then return {} end
  if tonumber(seen[3] or '') and tonumber(seen[3]) <= now then return {} end
  if now - (tonumber(seen[4] or '') or 0) > unnoted_ms then
    redis.call('HSET', key, 'used', int(now))
  end
  return redis.call('HGETALL', key)
end

-- Takes from a quota over a sliding window: the count of the running window, plus the share of the
-- last one that the sliding window still covers. Returns {allowed 1 or 0, remaining, reset ms,
-- retry ms}.
local function take(name, subject, cost, limit, window)
  local key = P .. 'quota:' .. name .. ':' .. subject
  local seen = redis.call('HMGET', key, 'window', 'current', 'previous')
  local index = math.floor(now / window)
  local elapsed = now - index * window
  local current, previous = 0, 0
  if seen[1] then
    local age = index - tonumber(seen[1])
    if age == 0 then
      current, previous = tonumber(seen[2]), tonumber(seen[3])
    elseif age == 1 then
      previous = tonumber(seen[2])
    end
  end
  local used = current + previous * (1 - elapsed / window)
  local allowed = used + cost <= limit
  if allowed then
    current = current + cost
    used = used + cost
    redis.call('HSET', key,
      'window', int(index), 'current', int(current), 'previous', int(previous))
    redis.call('PEXPIRE', key, int(2 * window))
  end

  local retry = 0
  if not allowed then
    if cost > limit then
      retry = 2 * window
    elseif current + cost <= limit then
      retry = window * (1 - (limit - current - cost) / previous) - elapsed
    else
      retry = window - elapsed + window * math.max(0, 1 - (limit - cost) / current)
    end
    count('quota_refusals{name="' .. name .. '"}')
  end
  local reset = 0
  if current > 0 then
    reset = 2 * window - elapsed
  elseif previous > 0 then
    reset = window - elapsed
  end
  return {
    allowed and 1 or 0, int(math.max(0, math.floor(limit - used))), int(math.ceil(reset)),
    int(math.ceil(retry)),
  }
end
