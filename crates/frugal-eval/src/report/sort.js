document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  table.querySelectorAll("thead button").forEach((button) => {
    button.addEventListener("click", () => {
      const column = Number(button.dataset.column);
      const falling = button.dataset.order !== "falling" && column > 0;
      table.querySelectorAll("thead button").forEach((other) => delete other.dataset.order);
      button.dataset.order = falling ? "falling" : "rising";
      const key = (row) => {
        const text = row.cells[column].dataset.value;
        const number = Number(text);
        return text === "" || Number.isNaN(number) ? text : number;
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = x < y ? -1 : x > y ? 1 : 0;
        return falling ? -order : order;
      };
      body.append(...Array.from(body.rows).sort(compare));
    });
  });
});
