"use strict";
// The page of the feature that the address names (#DICTIONARY/NUMBER): markup that was drawn when the export was made.
const SHORT = /<([−-]?[\d.,]+(?:e[+-]\d+)?)(?:@(\d+))?(!?)(?:([an]\d+))?(?:=([^>]*))?>/g;

// the marks of active tokens, which an export has in few letters
function whole(html, [largest, smallest]) {
  let expected = 0;
  const colourOf = (value) => {
    const activation = Number(value.replace("−", "-").replaceAll(",", ""));
    const bound = activation < 0 ? smallest : largest;
    const level = bound ? Math.min(10, Math.max(0, Math.floor((10 * activation) / bound + 0.5))) : 0;
    return `${activation < 0 ? "n" : "a"}${level}`;
  };
  const written = (_, value, place, strongest, colour, said) => {
    const position = place === undefined ? expected : Number(place);
    expected = position + 1;
    return `<mark class="${colour ?? colourOf(value)}${strongest && " peak"}" title="${said ?? ""}${value} @${position}">`;
  };
  return html.replace(SHORT, written).replaceAll("</>", "</mark>");
}

let drawn = false;
follow(async (said, latest) => {
  const place = said.match(/^([0-9a-f]{12})\/([0-9]{1,9})$/);
  if (!place) return;
  const [, key, number] = place;
  const shown = (await shard(`feature/${key}/${Math.floor(number / facts.together)}`))[number];
  if (!shown) throw new Error(`feature ${number} is not in this export`);
  if (!latest()) return;
  document.title = `${shown.title} · monolex`;
  main.innerHTML = whole(shown.html, shown.bounds);
  // a page that was just opened is at its top, and asking where it is would lay it out twice
  if (drawn) scrollTo(0, 0);
  drawn = true;
});
