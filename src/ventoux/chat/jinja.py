"""Mistral's chat formats as Jinja templates, for programs that know a format by nothing else.

The templates that shipped with v0.1 and v0.2 put wrong spaces; these give mistral-common's ids where the text between
two control tokens is tokenized as a text of its own, with a space before it (as our tokenizer.json files do it, and
llama.cpp). Two things no template can do: a result or arguments that come as text are written as they are unless they
are no JSON at first sight, and what a user types as `</s>` becomes what the program makes of it.
"""

# Turns of one role in a row become one; the system's go to `ns.system`, or (v7) stay where they are.
_TURNS = """\
{%- set ns = namespace(system='', turns=[], before='', last_user=-1, seen=false) %}
{%- for message in messages %}
  {%- set role = message['role'] %}
  {%- set content = message['content'] if message['content'] else '' %}
  {%- if content is not string %}
    {%- set content = content | map(attribute='text') | select | join('\\n\\n') %}
  {%- endif %}
  {%- set calls = message['tool_calls'] if message['tool_calls'] else [] %}
  {%- set call_id = message['tool_call_id'] if message['tool_call_id'] else '' %}
  {%- set name = message['name'] if message['name'] else '' %}
  {%- if role == 'system' and not SYSTEM_IN_PLACE %}
    {%- set ns.system = ns.system + ('\\n\\n' if ns.system and content else '') + content %}
  {%- elif role == ns.before and role in ['user', 'assistant'] %}
    {%- set last = ns.turns[-1] %}
    {%- set content = last['content'] + ('\\n\\n' if last['content'] and content else '') + content %}
    {%- set ns.turns = ns.turns[:-1] + [{'role': role, 'content': content, 'calls': last['calls'] + calls}] %}
  {%- else %}
    {%- set turn = {'role': role, 'content': content, 'calls': calls, 'call_id': call_id, 'name': name} %}
    {%- set ns.turns = ns.turns + [turn] %}
  {%- endif %}
  {%- set ns.before = role %}
{%- endfor %}
{%- if not SYSTEM_IN_PLACE and (not ns.turns or ns.turns[0]['role'] != 'user') %}
  {%- set ns.turns = [{'role': 'user', 'content': '', 'calls': []}] + ns.turns %}
{%- endif %}
{%- for turn in ns.turns %}
  {%- if turn['role'] == 'user' %}
    {%- set ns.last_user = loop.index0 %}
  {%- endif %}
{%- endfor %}
"""

_V1 = (
    _TURNS
    + """\
{{- bos_token }}
{%- set ns.before = '' %}
{%- for turn in ns.turns %}
  {%- if turn['role'] == 'user' %}
    {%- set system = ns.system + '\\n\\n' if ns.system and not ns.seen else '' %}
    {%- set ns.seen = true %}
    {{- (' ' if ns.before == 'user' else '') + '[INST] ' + system + turn['content'] + ' [/INST]' }}
  {%- elif turn['role'] == 'assistant' %}
    {{- ' ' + turn['content'] + eos_token }}
  {%- else %}
    {{- raise_exception('this model has no tools') }}
  {%- endif %}
  {%- set ns.before = turn['role'] %}
{%- endfor %}
"""
)

_LATER = (
    _TURNS
    + """\
{{- bos_token }}
{%- for turn in ns.turns %}
  {%- set forgotten = FORGETS and loop.index0 < ns.last_user %}
  {%- if turn['role'] == 'system' %}
    {{- '[SYSTEM_PROMPT]' + turn['content'] + '[/SYSTEM_PROMPT]' }}
  {%- elif turn['role'] == 'user' %}
    {%- if loop.index0 == ns.last_user and tools %}
      {{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
    {%- endif %}
    {%- set system = ns.system + '\\n\\n' if ns.system and loop.index0 == ns.last_user else '' %}
    {{- '[INST]' + system + turn['content'] + '[/INST]' }}
  {%- elif turn['role'] == 'assistant' and not (forgotten and turn['calls']) %}
    {{- turn['content'].rstrip(' ') }}
    {%- if turn['calls'] %}
      {{- '[TOOL_CALLS][' }}
      {%- for call in turn['calls'] %}
        {%- set made = call['function'] %}
        {%- set arguments = made['arguments'] if made['arguments'] is string else made['arguments'] | tojson %}
        {{- '{"name": ' + (made['name'] | tojson) + ', "arguments": ' + arguments }}
        {{- CALL_ID }}
        {{- '}' if loop.last else '}, ' }}
      {%- endfor %}
      {{- ']' }}
    {%- endif %}
    {{- eos_token }}
  {%- elif turn['role'] == 'tool' and not forgotten %}
    {%- set result = turn['content'] if turn['content'][:1] in ['{', '['] else turn['content'] | tojson %}
    {%- if turn['content'] | int | string == turn['content'] %}
      {%- set result = turn['content'] %}
    {%- endif %}
    {{- RESULT }}
  {%- endif %}
{%- endfor %}
"""
)

_RESULTS = {
    "v2": """'[TOOL_RESULTS][{"name": ' + (turn['name'] | tojson) + ', "content": ' + result + '}][/TOOL_RESULTS]'""",
    "v3": """'[TOOL_RESULTS]{"content": ' + result + ', "call_id": "' + turn['call_id'] + '"}[/TOOL_RESULTS]'""",
    "v7": """'[TOOL_RESULTS]' + turn['call_id'] + '[TOOL_CONTENT]' + turn['content'] + '[/TOOL_RESULTS]'""",
}


def mistral_template(version: str) -> str | None:
    """The template of a tokenizer's version, None when there is none for it."""
    if version == "v1":
        return _V1.replace("SYSTEM_IN_PLACE", "false")
    if version not in _RESULTS:
        return None
    call_id = "''" if version == "v2" else """', "id": ' + (call['id'] | tojson)"""
    text = _LATER.replace("RESULT }}", f"{_RESULTS[version]} }}}}").replace("CALL_ID }}", f"{call_id} }}}}")
    system_in_place, forgets = ("true" if version == v else "false" for v in ("v7", "v2"))
    return text.replace("SYSTEM_IN_PLACE", system_in_place).replace("FORGETS", forgets)
