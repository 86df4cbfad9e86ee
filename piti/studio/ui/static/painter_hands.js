// Pointers, keys and buttons of the painter, and its start.

// Pointers

function placeOf(event) {
  const box = surface.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * picture.width, ((event.clientY - box.top) / box.height) * picture.height];
}

const inside = ([x, y]) => [Math.min(picture.width - 0.001, Math.max(0, x)), Math.min(picture.height - 0.001, Math.max(0, y))];

surface.onpointerdown = (event) => {
  if (!event.isPrimary || ![0, 5].includes(event.button)) return;
  event.preventDefault();
  surface.focus({ preventScroll: true });
  abort();
  cursor = null;
  surface.setPointerCapture(event.pointerId);
  const rubber = event.button === 5 && sketching();
  begin(inside(placeOf(event)), rubber ? "eraser" : event.altKey && !sketching() ? "pick" : tool);
  if (gesture) gesture.pointer = event.pointerId;
};
surface.onpointermove = (event) => {
  if (!event.isPrimary) return;
  const all = (event.getCoalescedEvents && event.getCoalescedEvents()) || [];
  if (gesture && gesture.pointer === event.pointerId) for (const one of all.length ? all : [event]) go(placeOf(one));
  showPlace(placeOf(event));
};
surface.onpointerup = (event) => {
  if (gesture && gesture.pointer === event.pointerId) end();
  if (event.pointerType === "touch") showPlace(null);
};
surface.onpointercancel = (event) => gesture && gesture.pointer === event.pointerId && abort();
surface.onpointerleave = () => !cursor && showPlace(null);

// Keys

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function walk([dx, dy], far) {
  const by = far ? 40 : 4;
  const [x, y] = (cursor ||= [Math.floor(picture.width / 2) + 0.5, Math.floor(picture.height / 2) + 0.5]);
  cursor = [Math.min(picture.width - 0.5, Math.max(0.5, x + dx * by)), Math.min(picture.height - 0.5, Math.max(0.5, y + dy * by))];
  if (gesture) go(cursor);
  showPlace(cursor);
  say(nameAt(cursor).name + ", " + Math.floor(cursor[0]) + " across, " + Math.floor(cursor[1]) + " down");
}

// Space paints a dot, or begins and ends a shape; Enter lowers and lifts the brush.
function press(hold) {
  if (!cursor) walk([0, 0]);
  if (gesture) {
    end();
    return say("Painted");
  }
  const picking = tool === "pick"; // which gives the brush back
  begin(cursor, tool);
  if (gesture && !hold && !["area", "rectangle", "line"].includes(tool)) end();
  if (!picking) say(gesture ? "Begun: move with the arrow keys, then press again" : "Painted");
  else if (!nameAt(cursor).foreign) say(colours[chosen].name);
  showPlace(cursor);
}

surface.onkeydown = (event) => {
  const typed = event.altKey && ["[", "]"].includes(event.key); // as on keyboards that have these with AltGr or Option
  if (!typed && (event.ctrlKey || event.metaKey || event.altKey)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const named = toolNames().find((name) => TOOLS[name].key === key);
  const index = /^\d$/.test(key) ? (Number(key) + 9) % 10 : -1;
  if (ARROWS[key]) walk(ARROWS[key], event.shiftKey);
  else if (key === " " || key === "Enter") press(key === "Enter");
  else if (key === "Escape" && gesture) abort();
  else if (key === "[" || key === "]") chooseSize(size() + (key === "]" ? 1 : -1) * Math.max(1, size() / 5));
  else if (named) chooseTool(named);
  else if (!sketching() && colours[index] && !colours[index].foreign) chooseClass(index);
  else return;
  if (cursor) showPlace(cursor);
  event.preventDefault();
};
surface.onfocus = () => surface.matches(":focus-visible") && !cursor && walk([0, 0]);
surface.onblur = () => {
  if (gesture && gesture.pointer === undefined) end();
  cursor = null;
  showPlace(null);
};
part("painter").addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey || event.target.type === "search") return;
  const key = event.key.toLowerCase();
  if (key !== "z" && key !== "y") return;
  event.preventDefault();
  step(key === "y" || event.shiftKey ? "redo" : "undo");
});

part("undo").append(icon(ICONS.undo));
part("redo").append(icon(ICONS.redo));
part("clear").append(icon(ICONS.clear), word("span", "name", "Clear"));
part("undo").onclick = () => step("undo");
part("redo").onclick = () => step("redo");
part("clear").onclick = clear;
part("size").oninput = () => chooseSize(size());
part("veil").oninput = chooseVeil;
part("search").oninput = search;
part("menu").append(...SHAPES.map(([name, width, height]) => {
  const button = word("button", "", "");
  const shape = word("i", "shape", "");
  const long = Math.sqrt(width / height);
  shape.style.cssText = `width: ${17 * long}px; height: ${17 / long}px`;
  button.type = "button";
  button.append(shape, word("span", "", name));
  button.onclick = () => {
    part("new").open = false;
    part("new").firstChild.focus();
    begun(width, height);
    say("A blank picture, " + name);
  };
  return button;
}));
part("new").onkeydown = (event) => {
  if (event.key !== "Escape" || !part("new").open) return;
  part("new").open = false;
  part("new").firstChild.focus();
};
part("new").addEventListener("focusout", (event) => {
  if (event.relatedTarget && !part("new").contains(event.relatedTarget)) part("new").open = false;
});
surface.addEventListener("pointerdown", () => (part("new").open = false));
const helpId = "painter-" + Math.random().toString(36).slice(2);
part("help").id = helpId;
surface.setAttribute("aria-describedby", helpId);
surface.setAttribute("aria-label", "Picture");
watch(["value", "kind", "colours", "label"], arrived);
arrived();
