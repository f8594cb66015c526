-- Looks through jobs, newest first, for a text; changes nothing.
-- ARGV: prefix, index (key without the prefix), highest order ('+inf' or '(' and a number),
--       how many jobs to look at, the text in lower case, the same as JSON writes it,
--       name and value of a metadata entry, or '' and ''
-- Returns {how many were looked at, order of the last of them, id, order, id, order, ...}
local text, written, name, value = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local rows = redis.call('ZREVRANGEBYSCORE', P .. ARGV[2], ARGV[3], '-inf', 'WITHSCORES',
  'LIMIT', 0, ARGV[4])

local function has(whole)
  return type(whole) == 'string' and string.find(string.lower(whole), text, 1, true) ~= nil
end

local function matches(id, batch, spec, metadata)
  if has(id) or has(batch) then return true end
  -- Reading JSON takes longer than finding out that there is no need to.
  local raw = string.lower((spec or '') .. (metadata or ''))
  if not string.find(raw, written, 1, true) and name == '' then return false end
  local entries = cjson.decode(metadata or '{}')
  if name ~= '' then
    for key, entry in pairs(entries) do
      if string.lower(key) == name and string.find(string.lower(entry), value, 1, true) then
        return true
      end
    end
  end
  for key, entry in pairs(entries) do
    if has(key) or has(entry) then return true end
  end
  local known = cjson.decode(spec)
  return has(known.filename) or string.sub(known.input.sha256, 1, #text) == text
end

local found = {int(#rows / 2), rows[#rows] or ''}
for i = 1, #rows, 2 do
  local job = redis.call('HMGET', P .. 'job:' .. rows[i], 'batch', 'spec', 'metadata', 'deleted')
  local there = job[2] and (not job[4] or job[4] == '')
  if there and matches(rows[i], job[1] or nil, job[2], job[3] or nil) then
    found[#found + 1] = rows[i]
    found[#found + 1] = rows[i + 1]
  end
end
return found
